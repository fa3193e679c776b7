"""What strategies start from: the frame codec and the classifier, and how they are trained."""
