"""What runs in a worker: trains an Ultralytics detector with others, and says where the time goes. No Kubernetes here."""
