"""PromptBuilder: a conversation, turn by turn, into the exact string that a template makes of it."""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.prompting.templates import ChatTemplate, check_role, strip_placeholders
from prismatic.types import Turn


@dataclass(frozen=True)
class Conversation:
    """What a prompt was built from: messages as given, placeholders included."""

    template: ChatTemplate
    turns: tuple[Turn, ...]
    system_prompt: str | None = None


class Prompt(str):
    """A prompt string that remembers its conversation.

    It is tokenized turn by turn, exactly as in training, where a plain string can only be tokenized as a whole (some
    tokenizers then see a blank more or less in the earlier answers). Any string operation gives a plain string back.
    """

    conversation: Conversation | None

    def __new__(cls, text: str = "", conversation: Conversation | None = None) -> Prompt:
        """The string `text` with the conversation that it renders."""
        prompt = super().__new__(cls, text)
        prompt.conversation = conversation
        return prompt


class PromptBuilder:
    """Collects turns and gives the prompt string.

    Args:
        template: the chat format.
        system_prompt: None for the template's own, "" for none.
        keep_placeholders: human messages keep `<image>` and `<video>` (layout inline, where they mark places);
            otherwise they lose them, and the blanks around the message.
    """

    def __init__(
        self, template: ChatTemplate, system_prompt: str | None = None, keep_placeholders: bool = False
    ) -> None:
        self.template = template
        self.system_prompt = system_prompt
        self.keep_placeholders = keep_placeholders
        self.turns: list[Turn] = []
        template.human("", first=True, system_prompt=system_prompt)  # refuses a system prompt that has no place, now

    def add_turn(self, role: str, message: str) -> str:
        """Append a turn and return the string that it adds.

        Raises ValueError when it is not the turn of `role` ("human" begins, then "gpt", and so on).
        """
        check_role(role, len(self.turns))
        turn = Turn("human" if role == "human" else "gpt", message)
        self.turns.append(turn)
        return self._render(turn, len(self.turns) - 1)

    def get_prompt(self) -> Prompt:
        """The conversation so far, without a begin token; after a human turn it is ready to be answered."""
        return self._prompt(self.turns)

    def get_potential_prompt(self, message: str) -> Prompt:
        """The prompt that there would be after one more human turn; the conversation stays as it is."""
        check_role("human", len(self.turns))
        return self._prompt([*self.turns, Turn("human", message)])

    def _prompt(self, turns: list[Turn]) -> Prompt:
        text = "".join(self._render(turn, index) for index, turn in enumerate(turns))
        text = text.removeprefix(self.template.bos)
        text = text.rstrip() if self.template.strips else text
        return Prompt(text, Conversation(self.template, tuple(turns), self.system_prompt))

    def _render(self, turn: Turn, index: int) -> str:
        if turn.role == "gpt":
            return self.template.answer(turn.text)
        message = turn.text if self.keep_placeholders else strip_placeholders(turn.text)
        return self.template.human(message, first=index == 0, system_prompt=self.system_prompt)
