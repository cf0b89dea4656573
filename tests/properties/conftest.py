from hypothesis import settings

# An example takes longer on a busy machine, and is no worse for it.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
