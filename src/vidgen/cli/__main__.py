"""``python -m vidgen.cli`` is ``vidgen``."""

from vidgen.cli.app import main

if __name__ == "__main__":
    main()
