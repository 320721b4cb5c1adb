"""What sampling does when the device is out of memory."""
