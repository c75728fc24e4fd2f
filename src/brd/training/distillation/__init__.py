"""Training towards a teacher's distributions over its vocabulary: by which arms, and how, says docs/distillation.md."""
