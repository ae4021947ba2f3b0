"""The frozen vocabulary: topics, events, handlers, payloads, options, statistics. No locks, no state."""
