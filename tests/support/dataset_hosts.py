"""Hosts of datasets on loopback, each in its documented format: DOIs, Zenodo, Figshare, Dataverse, HydroShare, CKAN."""

import io
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from aiohttp.test_utils import TestServer

RESOURCE = "b8f6eae9d89241cf8b5904033460af61"
ACTIVITY = "93df7fd0-0edc-4ebf-bac7-fbf5f78de90b"
GIB = 1024**3


class DatasetHosts:
    """One server that is all of these hosts."""

    def __init__(self) -> None:
        self.files = {"requirements.txt": b"", "notebook.ipynb": b"{}"}
        self.size: int | None = None
        """Size that the hosts say each file has; None: the true one."""
        self.modified = "2019-10-14T06:36:32.123456"
        self.versions = {"dataverse": (4, 0), "figshare": (3, 0), "zenodo": (3242074, 0)}
        self.dois: dict[str, str] = {}
        self.resource_url: str | None = None
        """URL of the resources of the CKAN dataset; None: on this server."""
        self.installations: list[str] = []
        self.requests: list[str] = []
        self.always: dict[str, Callable[[], web.Response]] = {}
        """Responses in the place of the true ones, by the beginning of the path."""
        app = web.Application(middlewares=[self._interfere])
        add = app.router.add_get
        add("/api/handles/{doi:.+}", self._handle)
        add("/record/{id}", self._zenodo_page)
        add("/records/{id}", self._zenodo_page)
        add("/api/records/{id}", self._zenodo_record)
        add("/api/records/{id}/files", self._zenodo_files)
        add("/v2/articles/{id}", self._figshare)
        add("/v2/articles/{id}/versions/{version}", self._figshare)
        add("/api/datasets/:persistentId", self._dataverse)
        add("/api/files/:persistentId", self._dataverse_file)
        add("/api/access/datafile/{id}", self._dataverse_content)
        add("/installations.json", self._list_installations)
        add("/hsapi/resource/{id}/scimeta/elements", self._hydroshare)
        add("/hsapi/resource/{id}/files/", self._hydroshare_files)
        add("/api/3/action/{action}", self._ckan)
        add("/content/{name}", self._content)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings under which the providers use this server."""
        return {
            "doi_url": self.url,
            "zenodo_url": self.url,
            "figshare_api_url": f"{self.url}/v2",
            "hydroshare_url": self.url,
            "allow_private_addresses": True,
        }

    def zipped(self) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in self.files.items():
                archive.writestr(name, content)
        return stream.getvalue()

    @web.middleware
    async def _interfere(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        for start, response in self.always.items():
            if request.path.startswith(start):
                return response()
        found: web.StreamResponse = await handler(request)
        return found

    def _said(self, content: bytes) -> int:
        return len(content) if self.size is None else self.size

    async def _handle(self, request: web.Request) -> web.Response:
        doi = unquote(request.match_info["doi"])
        if doi not in self.dois:
            return web.json_response({"responseCode": 100, "handle": doi}, status=404)
        values = [
            {"index": 100, "type": "HS_ADMIN", "data": {"format": "admin", "value": {"index": 200}}},
            {"index": 1, "type": "URL", "data": {"format": "string", "value": self.dois[doi]}},
        ]
        return web.json_response({"responseCode": 1, "handle": doi, "values": values})

    async def _zenodo_page(self, request: web.Request) -> web.Response:
        newest = self.versions["zenodo"][0]
        if request.match_info["id"] == "3242073":  # all versions of the record
            return web.Response(status=302, headers={"Location": f"/records/{newest}"})
        if request.path.startswith("/record/"):
            return web.Response(status=301, headers={"Location": f"/records/{request.match_info['id']}"})
        return web.Response(text="<html>" + "x" * 10_000, content_type="text/html")

    async def _zenodo_record(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        files = [
            {
                "id": name,
                "key": name,
                "size": self._said(content),
                "links": {"self": f"{self.url}/content/{name}"},
            }
            for name, content in self.files.items()
        ]
        links = {"files": f"{self.url}/api/records/{number}/files"}
        return web.json_response(
            {"id": int(number), "conceptrecid": "3242073", "links": links, "files": files}
        )

    async def _zenodo_files(self, _request: web.Request) -> web.Response:
        entries = [
            {"key": name, "size": self._said(content), "links": {"content": f"{self.url}/content/{name}"}}
            for name, content in self.files.items()
        ]
        return web.json_response({"enabled": True, "entries": entries})

    async def _figshare(self, request: web.Request) -> web.Response:
        newest = self.versions["figshare"][0]
        version = int(request.match_info.get("version", newest))
        if request.match_info["id"] != "9782777" or version > newest:
            return web.json_response(
                {"message": "Entity not found: article", "code": "EntityNotFound"}, status=404
            )
        files = [
            {"id": 1, "name": name, "size": self._said(content), "is_link_only": False}
            for name, content in self.files.items()
        ]
        return web.json_response({"id": 9782777, "version": version, "files": files})

    async def _dataverse(self, request: web.Request) -> web.Response:
        if request.query["persistentId"] != "doi:10.7910/DVN/TJCLKP":
            return web.json_response({"status": "ERROR", "message": "Dataset not found"}, status=404)
        major, minor = self.versions["dataverse"]
        files = [
            {"label": name, "dataFile": {"id": number, "filesize": self._said(content)}}
            for number, (name, content) in enumerate(self.files.items())
        ]
        data = {
            "id": 3035124,
            "identifier": "DVN/TJCLKP",
            "authority": "10.7910",
            "persistentUrl": "https://doi.org/10.7910/DVN/TJCLKP",
            "latestVersion": {"versionNumber": major, "versionMinorNumber": minor, "files": files},
        }
        return web.json_response({"status": "OK", "data": data})

    async def _dataverse_file(self, request: web.Request) -> web.Response:
        if request.query["persistentId"] != "doi:10.7910/DVN/TJCLKP/3YRRYJ":
            return web.json_response({"status": "ERROR", "message": "File not found"}, status=404)
        version = {"datasetPersistentId": "doi:10.7910/DVN/TJCLKP"}
        return web.json_response({"status": "OK", "data": {"datasetVersion": version}})

    async def _dataverse_content(self, request: web.Request) -> web.Response:
        return web.Response(body=list(self.files.values())[int(request.match_info["id"])])

    async def _list_installations(self, _request: web.Request) -> web.Response:
        return web.json_response({"installations": [{"hostname": name} for name in self.installations]})

    async def _hydroshare(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != RESOURCE:
            return web.json_response({"detail": "No resource was found"}, status=404)
        dates = [
            {"type": "created", "start_date": "2019-01-01T00:00:00Z"},
            {"type": "modified", "start_date": f"{self.modified}Z"},
        ]
        return web.json_response({"title": "x", "dates": dates})

    async def _hydroshare_files(self, _request: web.Request) -> web.Response:
        files = [{"file_name": name, "size": self._said(content)} for name, content in self.files.items()]
        return web.json_response({"count": len(files), "next": None, "previous": None, "results": files})

    async def _ckan(self, request: web.Request) -> web.Response:
        action, wanted = request.match_info["action"], request.query.get("id")
        if action == "status_show":
            return web.json_response({"success": True, "result": {"ckan_version": "2.10.4"}})
        known = {"package_show": "sample-dataset", "activity_data_show": ACTIVITY}
        if known.get(action) != wanted:
            error = {"message": "Not found", "__type": "Not Found Error"}
            return web.json_response({"success": False, "error": error}, status=404)
        resources = [
            {"id": name, "name": name, "size": self._said(content), "url": self._resource(name)}
            for name, content in self.files.items()
        ]
        modified = self.modified if action == "package_show" else "2024-04-02T02:10:31.000000"
        package = {
            "name": "sample-dataset",
            "state": "active",
            "metadata_modified": modified,
            "resources": resources,
        }
        return web.json_response({"success": True, "result": package})

    def _resource(self, name: str) -> str:
        return f"{self.url}/content/{name}" if self.resource_url is None else self.resource_url

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])
