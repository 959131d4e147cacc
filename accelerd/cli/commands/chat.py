"""accelctl chat: one PROMPT to a model, or a conversation with it.

The answer goes to stdout, everything about it to stderr. Ctrl-C ends an answer, not the conversation.
"""

from __future__ import annotations

import argparse
from typing import Any

from accelerd.base.names import ANY
from accelerd.cli.answer import AnswerPrinter, ChatAnswer, ask, summary
from accelerd.cli.context import Context, configuration, names_in, unknown_name
from accelerd.cli.failure import ExitStatus, Failure, usage

QUITS = ("/exit", "/quit", "/bye", "/q")
HELP_TEXT = "/exit quits, /new starts over, /system TEXT sets instructions; Ctrl-C stops an answer"
EPILOG = f"""\
In a conversation: {HELP_TEXT}.
Without PROMPT and with a pipe as stdin, stdin is the prompt; with --json, each line of it is one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="send this and exit; without it a conversation starts"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="limit an answer to N tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature; 0 is deterministic")


def run(context: Context, args: argparse.Namespace) -> int:
    options = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    chat = Conversation(context, args.model, {k: v for k, v in options.items() if v is not None}, args.system)
    if not context.out.json_mode and lacks_template(context, args.model):
        context.out.note(f"{args.model} has no chat template: it continues text, and its answers may be odd")
    if args.prompt:
        return once(context, chat, " ".join(args.prompt))
    if context.stdin.isatty():
        return converse(context, chat)
    if context.out.json_mode:
        return each_line(context, chat)
    prompt = context.stdin.read().strip()
    if not prompt:
        raise usage("no prompt: stdin is empty", "see: accelctl chat --help")
    return once(context, chat, prompt)


def lacks_template(context: Context, name: str) -> bool:
    """Is it a model for completions only, by its file? False where that is not known here."""
    from accelerd.cli.commands.remove import files_of
    from accelerd.estimate.model_kind import Kind, identify

    config, _ = configuration(context)
    specs = config.models.values() if config is not None else ()
    spec = next((spec for spec in specs if name in (spec.name, *spec.aliases)), None)
    if spec is None or spec.engine != "llama-server" or spec.chat_template_file:
        return False
    given = any(argument.startswith("--chat-template") for argument in spec.extra_args)
    first = next(iter(files_of(context, spec)), None)
    return not given and first is not None and identify(first).kind is Kind.COMPLETION


class Conversation:
    """The messages so far with one model; sends the next."""

    def __init__(self, context: Context, model: str, options: dict[str, Any], system: str | None) -> None:
        self._context = context
        self.model = model
        self._options = options
        self._system = system
        self.messages: list[dict[str, str]] = []
        self.forget()

    def forget(self) -> None:
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def instruct(self, text: str) -> None:
        """Set the instructions; the conversation goes on."""
        self._system = text or None
        rest = [m for m in self.messages if m["role"] != "system"]
        self.forget()
        self.messages += rest

    def say(self, prompt: str) -> ChatAnswer:
        """Send a prompt and show the answer; both are kept in the conversation unless the request fails."""
        self.messages.append({"role": "user", "content": prompt})
        screen = AnswerPrinter(self._context.out)
        try:
            answer = ask(self._context.client, self._context.clock, self.model, self.messages, self._options, screen)
        except Failure:
            self.messages.pop()
            raise
        finally:
            screen.close()
        if answer.content:
            self.messages.append({"role": "assistant", "content": answer.content})
        else:
            self.messages.pop()  # interrupted before the first word: as if never sent
        return answer


def once(context: Context, chat: Conversation, prompt: str) -> int:
    out = context.out
    answer = chat.say(prompt)
    out.result(answer.json())
    if out.tty_errors and not out.json_mode:
        out.note(summary(answer))
    return ExitStatus.INTERRUPTED if answer.interrupted else ExitStatus.OK


def each_line(context: Context, chat: Conversation) -> int:
    """One JSON object for each prompt on stdin; an answer that fails is one too, and the conversation goes on."""
    status = ExitStatus.OK
    for line in context.stdin:
        if not line.strip():
            continue
        try:
            context.out.json_line(chat.say(line.strip()).json())
        except Failure as failure:
            if failure.exit in (ExitStatus.UNREACHABLE, ExitStatus.NO_SUCH_MODEL):
                raise
            status = failure.exit
            context.out.json_line(failure.json())
    return status


def converse(context: Context, chat: Conversation) -> int:
    """The conversation on a terminal, until /exit or Ctrl-D."""
    import readline  # noqa: F401  input() edits lines and remembers them once this is imported

    out = context.out
    status = context.client.get("status")
    names = names_in(status, shown=False)
    if chat.model not in names and not any(ANY in name for name in names):  # what they match the daemon decides
        raise unknown_name(context, chat.model)
    out.note(HELP_TEXT)
    while True:
        try:
            prompt = input("> ").strip()
        except KeyboardInterrupt:
            out.note("\n/exit or Ctrl-D quits")
            continue
        except EOFError:
            out.line()
            return ExitStatus.OK
        if prompt in QUITS:
            return ExitStatus.OK
        if prompt.startswith("/"):
            command(context, chat, prompt)
        elif prompt:
            try:
                out.note(summary(chat.say(prompt)) + "\n")
            except Failure as failure:
                out.failure(failure)
                if failure.exit == ExitStatus.UNREACHABLE:
                    return failure.exit


def command(context: Context, chat: Conversation, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/new":
        chat.forget()
        context.out.note("new conversation")
    elif word == "/system":
        chat.instruct(rest.strip())
        context.out.note("instructions set" if rest.strip() else "instructions removed")
    else:
        context.out.note(HELP_TEXT)
