"""The whole exchange on one machine: its processes, its demonstration, and what a person sees."""
