"""The tree of errors is public: `except` clauses of applications depend on it."""

from __future__ import annotations

import inspect

from reliable_mq import errors

TREE = {
    "ReliableMQError": (Exception,),
    "ConfigurationError": (errors.ReliableMQError, ValueError),
    "MissingExtraError": (errors.ConfigurationError,),
    "NoTransactionError": (errors.ReliableMQError,),
    "InvalidMessageError": (errors.ReliableMQError, ValueError),
    "MessageTooLargeError": (errors.InvalidMessageError,),
    "TransportError": (errors.ReliableMQError,),
    "PublishUnconfirmedError": (errors.TransportError,),
    "PublishRejectedError": (errors.ReliableMQError,),
    "StaleDeliveryError": (errors.ReliableMQError,),
    "DecodeError": (errors.ReliableMQError,),
    "IncompleteDeadLetterError": (errors.ReliableMQError,),
}


def test_the_tree_of_errors_is_the_documented_one():
    assert {name: getattr(errors, name).__bases__ for name in errors.__all__} == TREE


def test_every_error_of_the_module_is_exported():
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert defined == set(errors.__all__)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    lines = (errors.__doc__ or "").split("::\n", 1)[1].splitlines()
    drawn = [line for line in lines if line.rstrip().endswith(("Error", ")")) and "Error" in line]
    found: dict[str, str | None] = {}
    parents: list[tuple[int, str]] = []
    for line in drawn:
        name = line.split("+-")[-1].split("(")[0].strip()
        if name not in TREE:
            break
        indent = line.index(name)
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        found[name] = parents[-1][1] if parents else None
        parents.append((indent, name))
    expected = {
        name: bases[0].__name__ if bases[0] is not Exception else None
        for name, bases in TREE.items()
    }
    assert found == expected


def test_a_retryable_error_is_never_a_permanent_one():
    assert not issubclass(errors.TransportError, ValueError)
    assert not issubclass(errors.PublishRejectedError, errors.TransportError)
