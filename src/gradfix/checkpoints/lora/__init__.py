"""An adapter read as the dense weights it stands for."""
