"""How conditions are enriched: captions that stand beside a prompt."""
