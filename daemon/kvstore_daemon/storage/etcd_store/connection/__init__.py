"""Calls to an etcd cluster: its address and messages, our credentials, and what a failure means."""
