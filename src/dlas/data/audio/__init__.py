"""Sound: recordings decoded from WAV, and the features that networks for speech take in their place."""
