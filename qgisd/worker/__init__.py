"""The processes below the daemon: zygote, snapshot, worker. Only this package imports QGIS."""
