"""Text tokens to codes: scheduling, the AR and NAR loops, sampling. Knows neither text nor audio."""
