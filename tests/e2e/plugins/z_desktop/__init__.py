raise RuntimeError("not for servers")
