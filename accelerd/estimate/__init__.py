"""From a model's file and settings to the memory it needs, per pool. Reads headers, never weights."""
