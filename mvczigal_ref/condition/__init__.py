"""Stage 2: captions beside each prompt, under which samples are also judged and trained on."""
