"""A served model under load: latency, replicas, and clients that misbehave."""
