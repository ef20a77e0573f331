"""A served model under load: latency over HTTP, replicas, and clients that misbehave."""
