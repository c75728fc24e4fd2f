"""Prompts as an engine takes them."""


class TextPrompt(dict):  # type: ignore[type-arg]
    pass


class TokensPrompt(dict):  # type: ignore[type-arg]
    pass
