"""What a collection holds in memory to be searched; all of it can be made again from the store."""
