"""``python -m prompt_serve``: the same as the ``prompt-serve`` command."""

from prompt_serve.cli.main import main

if __name__ == "__main__":
    main()
