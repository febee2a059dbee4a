"""Many trainings of one recipe: the space, the resumable study, its trials and its report."""
