"""Teachers, by the name of their kind."""

from collections.abc import Iterator, Sequence

from brd.sections.teacher import Teacher as TeacherSettings
from brd.teachers.teacher import Answer, Teacher


def open_teacher(settings: TeacherSettings) -> Teacher:
    """Start the teacher that a recipe names."""
    if settings.kind == "llamacpp":
        from brd.teachers import llamacpp

        return llamacpp.load(settings)
    if settings.kind == "openai":
        from brd.teachers import openai

        return openai.load(settings)
    if settings.kind == "vllm":
        from brd.teachers import ray_data

        return ray_data.load(settings)
    from brd.teachers import shared_prefix

    return shared_prefix.load(settings)


class LazyTeacher:
    """A recipe's teacher that is fetched and started only when there is something to ask, where its identity can be
    told beforehand: who has all readings needs no teacher."""

    def __init__(self, settings: TeacherSettings) -> None:
        self._settings = settings
        self._opened: Teacher | None = None

    @property
    def opened(self) -> Teacher:
        if self._opened is None:
            self._opened = open_teacher(self._settings)
        return self._opened

    @property
    def context_length(self) -> int:
        return self.opened.context_length

    def identity(self) -> dict[str, str]:
        if self._opened is None and self._settings.kind == "shared_prefix":
            from brd.teachers.shared_prefix import known_identity

            if found := known_identity(self._settings):
                return found
        if self._settings.kind == "openai":
            from brd.teachers import openai

            return openai.identity(self._settings)
        if self._settings.kind == "vllm":
            from brd.teachers import ray_data

            return ray_data.identity(self._settings)
        return self.opened.identity()

    def count_tokens(self, text: str) -> int:
        return self.opened.count_tokens(text)

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        return self.opened.answer(prefix, suffixes, stop=stop, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        if self._opened:
            self._opened.close()
