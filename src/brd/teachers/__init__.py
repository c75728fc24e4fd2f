"""Teachers, by the name of their kind."""

from brd.recipe import Teacher as TeacherSettings
from brd.teachers.teacher import Teacher


def open_teacher(settings: TeacherSettings) -> Teacher:
    """Start the teacher that a recipe names."""
    if settings.kind == "llamacpp":
        from brd.teachers import llamacpp

        return llamacpp.load(settings)
    from brd.teachers import shared_prefix

    return shared_prefix.load(settings)
