"""From prompts and pictures to pictures, as compiled programs."""
