"""What sani-dist is used for, each as code to read and to run."""
