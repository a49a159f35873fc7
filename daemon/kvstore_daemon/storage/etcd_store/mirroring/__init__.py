"""The copy of the store on this machine, and the watch that keeps it equal to what etcd has."""
