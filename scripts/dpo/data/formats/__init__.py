"""The layouts of preference data, told from columns, as prompt, chosen and rejected."""
