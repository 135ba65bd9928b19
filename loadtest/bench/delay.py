"""A TCP proxy that makes a server slow: what the server sends arrives some milliseconds late, as over a long line.

usage: delay.py LISTEN-PORT SERVER-PORT MILLISECONDS     (all on 127.0.0.1; ends with SIGTERM)
"""

import asyncio
import sys

LISTEN, SERVER, DELAY = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000


async def pump(reader, writer, delay):
    """Passes bytes on, each piece `delay` seconds after it came; pieces overtake nothing, since all wait equally long."""
    loop = asyncio.get_running_loop()
    try:
        while data := await reader.read(65536):
            loop.call_later(delay, writer.write, data) if delay else writer.write(data)
    except ConnectionError:
        pass
    finally:
        loop.call_later(delay + 0.01, writer.close)


async def serve(reader, writer):
    try:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", SERVER)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, server_writer, 0), pump(server_reader, writer, DELAY))


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", LISTEN, backlog=1024)
    await server.serve_forever()


asyncio.run(main())
