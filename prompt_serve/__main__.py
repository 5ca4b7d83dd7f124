"""Run the ``prompt-serve`` command as ``python -m prompt_serve``."""

from prompt_serve.cli.main import main

if __name__ == "__main__":
    main()
