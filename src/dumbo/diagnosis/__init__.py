"""What `dumbo doctor` looks at: versions, devices, the hub, plugins, and what one configuration needs."""
