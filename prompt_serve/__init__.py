"""prompt-serve: learn compact prompts for a frozen CLIP, export them, serve thousands at once.

Import from the module that owns a name, for example
``from prompt_serve.client import Client``; nothing is re-exported here, so that
importing one part never pulls in the dependencies of another.
"""

__version__ = "0.1.0"
