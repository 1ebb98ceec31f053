"""What an attacker with the weights can still get out: attacks that bring a memory back, and looks inside. Above audit and repair."""
