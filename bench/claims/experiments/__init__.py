"""The experiments, one module each: ``measure(settings, folder)`` runs in a fresh process and returns raw samples."""
