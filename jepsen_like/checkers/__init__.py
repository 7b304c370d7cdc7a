"""What histories are held to: models, and what is read off a history without one."""
