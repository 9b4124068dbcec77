"""Models and adapters in a notebook: written once, over what a backend offers; each backend's ``library`` binds it."""
