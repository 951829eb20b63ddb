"""Plain texts, labelled segments, judged steps and ready-made tokens: training without a chat template."""
