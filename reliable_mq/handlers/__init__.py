"""What is known of a handler before its first message: how it is called and what it asks for.

Nothing here opens, sends or stores anything. Everything that cannot work is a
:class:`~reliable_mq.errors.ConfigurationError` at decoration, whose text names the handler, the
parameter or option at fault, and the remedy.
"""

from reliable_mq.handlers.call import HandlerCall, Injection, Source
from reliable_mq.handlers.inspection import inspect_handler
from reliable_mq.handlers.spec import (
    Guarantee,
    GuaranteeName,
    HandlerRegistry,
    HandlerSpec,
    build_handler,
)

__all__ = [
    "Guarantee",
    "GuaranteeName",
    "HandlerCall",
    "HandlerRegistry",
    "HandlerSpec",
    "Injection",
    "Source",
    "build_handler",
    "inspect_handler",
]
