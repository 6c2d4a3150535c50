"""Small plugins, each real in miniature, that need what the contracts promise beyond the simple task.

They keep the public contract, train and resume, and their numbers do not depend on how a batch is divided.
"""
