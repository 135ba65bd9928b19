"""TCP proxy that delays a server's answers, as a long line would.

usage: delay.py LISTEN-PORT SERVER-PORT MILLISECONDS     (all on 127.0.0.1; ends with SIGTERM)
"""

import asyncio
import sys

LISTEN, SERVER, MILLISECONDS = map(int, sys.argv[1:])


async def pass_on(reader, writer, delay):
    loop = asyncio.get_running_loop()
    try:
        while piece := await reader.read(65_536):
            if delay:
                loop.call_later(delay, writer.write, piece)
            else:
                writer.write(piece)
    except OSError:
        pass
    loop.call_later(delay, writer.close)


async def connected(reader, writer):
    try:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", SERVER)
    except OSError:
        return writer.close()
    await asyncio.gather(pass_on(reader, to_server, 0), pass_on(from_server, writer, MILLISECONDS / 1000))


async def main():
    async with await asyncio.start_server(connected, "127.0.0.1", LISTEN, backlog=1024) as server:
        await server.serve_forever()


asyncio.run(main())
