"""Pictures of several arms, drawn side by side and scored."""
