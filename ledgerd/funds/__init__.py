"""The way in and out as it is run: its settings, its rounds, and the limits it asks riskd for."""
