"""From a finished run to a model in people's hands: chat, export, publish, score, reproduce."""
