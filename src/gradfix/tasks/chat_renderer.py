"""Renders chat templates in a process of its own: run as a script by :mod:`gradfix.tasks.chat_templates`.

A template is a program that came with a model. Jinja's sandbox keeps it from files and from Python's insides, but not
from looping for ever or making gigabytes of text; only a process can be bounded in both. Nothing of gradfix and not
torch is imported here: the process starts in half a second.
"""

import json
import resource
import signal
import sys

MEMORY = 2 * 2**30
"""Bytes the process may map; a template's text has kilobytes."""


def main() -> None:
    """Answer each line of stdin, a JSON request, by a line of JSON on stdout."""
    import os

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # ends the process
            answer = {"rendered": render_jinja_template(**request["arguments"])}
        except MemoryError:
            answer = {"error": "it needs more memory than a template should"}
        except Exception as error:  # noqa: BLE001  a template raises whatever its author thought of
            text = " ".join(str(error).split())[:300]
            answer = {"error": text or type(error).__name__}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
