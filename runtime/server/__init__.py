"""Speech over HTTP. `worker` owns the model and knows no HTTP; `app` and its routes only translate."""
