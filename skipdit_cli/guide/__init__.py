"""The guide: one Markdown file a topic, and the topics by name."""
