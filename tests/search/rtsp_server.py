"""A camera: an RTSP server of GStreamer's that shows JPEG files in turn, for ever. Runs on the system's Python.

python3 rtsp_server.py PORT FOLDER 200x160 USER PASSWORD    serves FOLDER/000.jpg, .. at rtsp://127.0.0.1:PORT/cam
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

ELEMENTS = ("multifilesrc", "rtpjpegpay")


def main(port: str, folder: str, size: str, user: str, password: str) -> None:
    """Serves until it is killed; prints a line once it does."""
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    factory = GstRtspServer.RTSPMediaFactory()
    width, height = size.split("x")
    caps = f"image/jpeg,framerate=10/1,width={width},height={height}"
    factory.set_launch(f"multifilesrc location={folder}/%03d.jpg loop=true caps={caps} ! rtpjpegpay name=pay0")
    factory.set_shared(True)
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    auth.add_digest(user, password, token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("serving", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    gi.require_version("GstRtsp", "1.0")
    from gi.repository import GstRtsp

    Gst.init(None)
    missing = [name for name in ELEMENTS if not Gst.ElementFactory.find(name)]
    if missing:
        sys.exit(f"GStreamer lacks {', '.join(missing)}")
    main(*sys.argv[1:])
