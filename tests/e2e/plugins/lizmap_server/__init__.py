"""What Lizmap's plugin does with a server, for tests; written from what it asks for and answers.

It stands in for 3liz/qgis-lizmap-server-plugin, which is in no package registry. What is here was
checked against release 2.15.3, commit fd2359e: `context.py` against lizmap_server/context,
`server.py` against lizmap_server/core.py (headers, then parameters), lizmap_accesscontrol.py,
lizmap_filter.py, lizmap_service.py, server_info.py and legacy_server_info_handler.py. None of its
code is here.
"""


def serverClassFactory(interface):
    from lizmap_server.server import Server

    return Server(interface)
