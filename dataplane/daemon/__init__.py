"""The only event loop: applies plans, serves the queues, answers the control socket."""
