"""``python -m reliable_mq`` is the command ``reliable-mq``."""

from reliable_mq.cli import main

if __name__ == "__main__":
    main()
